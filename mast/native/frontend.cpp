extern "C" int frontend_abi() { return 1; }
