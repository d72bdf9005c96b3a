"""Feature Boosting and Suppression: convolutions that compute only the channels that matter for an image."""

from surgery.methods.fbs.method import FBSConfig, FBSMethod

__all__ = ["FBSConfig", "FBSMethod"]
