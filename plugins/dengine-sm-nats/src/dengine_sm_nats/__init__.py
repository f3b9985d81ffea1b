"""The commit log `nats` of dengine_sm: replicated by NATS JetStream."""
