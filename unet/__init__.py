"""Records -> a trained, evaluated and exported U-Net."""
