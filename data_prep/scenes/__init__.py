"""Small rendered 3-D worlds with exact depth, exact segmentation, captions and balanced questions."""
