"""What stands on the feature maps of any backbone; nothing here knows which."""
