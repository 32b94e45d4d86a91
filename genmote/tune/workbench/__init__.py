"""Methods of training on a workbench, with PyTorch (the extra `workbench`): one module a method, found by its name."""
