"""An offline cache of a data set: small frames and 16 kHz sound in WebDataset tar shards, read by byte ranges.

A sample is a span of a file that rows of the manifest name. Its frames are JPEGs one after the other (``.mjpeg``), its
sound is 16-bit PCM (``.wav``), and its ``.json``, which comes first, tells where each is, with checksums. A clip is
read with one seek for the header, one for each frame and one for the sound; nothing else of the shard is touched.
"""
