"""Models, rules and files that say what a picture's depth, segmentation and fit to its text are: one file each."""
