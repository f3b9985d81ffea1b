def check_stream(config, expected_replicas):
    return []


async def refuse_lazy_servers(options):
    pass
