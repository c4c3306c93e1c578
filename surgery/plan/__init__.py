"""Planning a mask: scores by a criterion, then the experts that each layer keeps."""
