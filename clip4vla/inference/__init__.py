"""What is done with a trained model: embed media, build and search an index, serve."""
