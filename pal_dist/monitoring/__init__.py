"""What is seen of a run: progress, TensorBoard, its folder's files, status, comparisons."""
