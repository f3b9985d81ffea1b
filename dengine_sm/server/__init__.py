"""The gRPC server of a node; needs the extra `dengine-sm[server]`."""

from dengine_sm.server.lifecycle import MAX_MESSAGE_BYTES, NodeServer

__all__ = ["MAX_MESSAGE_BYTES", "NodeServer"]
