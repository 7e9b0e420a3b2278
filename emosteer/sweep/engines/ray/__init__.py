"""`engine="ray"`: actors that hold one model each; units stream to them, they write to the shared store."""
