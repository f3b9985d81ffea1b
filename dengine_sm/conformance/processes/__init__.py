"""Machines in processes of their own, so that they can really be killed."""
