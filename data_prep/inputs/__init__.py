"""What `pack` can read: one file per format, all giving the same samples."""
