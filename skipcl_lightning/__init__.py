"""Skip-aware contrastive session recommendation as a plug-in for PyTorch Lightning."""
