"""StampScenes, the embedded corpus: real pictures, sounds and voices composed into short real videos."""
