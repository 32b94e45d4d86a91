"""The tune set: what adapting a model on a device takes and gives."""
