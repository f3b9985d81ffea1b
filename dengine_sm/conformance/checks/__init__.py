"""The checks, one module for each part of the contract; each ends with its table `CHECKS`."""
