"""A program that does all that can be done with prompts, for a test that reads what it logs."""

from __future__ import annotations

import asyncio

from streams.log import configure
from streams.settings import Settings
from tests.support.gateway import running_gateway
from tests.support.prompts_api import PromptsApi

#: In every text, name and value that is sent.
SECRET = "s3cr3t"


async def tell_everything() -> None:
    """Good requests and bad ones, and then a log that is away."""
    async with running_gateway() as gateway:
        prompts = PromptsApi(gateway)
        await prompts.create("s", f"{SECRET} {{{{a}}}}", description=SECRET)
        await prompts.create("s", SECRET)
        await prompts.create("t", f"{{% {SECRET} %}}")
        await prompts.create("t", "x", model_config={SECRET: 1, "stream": SECRET})
        await prompts.create("u", f"{SECRET} {{% if a %}}{{{{ b|upper }}}}{{% endif %}}")
        await prompts.call("POST", raw=f'{{"{SECRET}'.encode())
        await prompts.call("PATCH", "/s", description=SECRET * 2)
        await prompts.render("s", variables={"a": SECRET, SECRET: 1})
        await prompts.render("s", variables={SECRET: SECRET})
        await prompts.render("u", variables={"a": 1, "b": SECRET})
        await prompts.render("u", variables={"a": 1, "b": {SECRET: [SECRET]}})
        await prompts.render("s", variables={"a": SECRET * 100_000})
        await prompts.get("/s/versions")
        gateway.log.unreachable = True
        await prompts.add("s", SECRET)
        await prompts.create(SECRET, SECRET)


if __name__ == "__main__":
    configure(Settings(log_level="debug"), "gateway")
    asyncio.run(tell_everything())
