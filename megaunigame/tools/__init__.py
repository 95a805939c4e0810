"""What commands do that belongs to no single room: exports, attention of teachers, runs started from Python."""
