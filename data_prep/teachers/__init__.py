"""Sources of depth, segmentation and picture-text similarity (models, rules, files): one file each."""
