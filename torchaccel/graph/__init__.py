"""What changes structure: trace, fold, fuse, connect, and the choice of each layer by measurement."""
