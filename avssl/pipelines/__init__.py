"""What the tools do: data, model, task, engine, evaluation and report put together, one file each."""
