"""Sources of depth, segmentation, picture-text similarity and codes (models, rules, files): one file each."""
