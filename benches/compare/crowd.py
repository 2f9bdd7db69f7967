"""Sends one `POST /chat` on each of many connections and waits for answers without reading them.

Usage: crowd.py PORT CONNECTIONS
"""

import asyncio
import sys

from machine import LOOPBACK

# How many connections are opened at once: fewer than a listener's queue holds.
PACE = 200
BODY = b'{"prompt": "Why is the sky blue?", "system_prompt": "Answer in one sentence."}'
REQUEST = (
    b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


async def main(port, connections):
    pace = asyncio.Semaphore(PACE)

    async def join():
        async with pace:
            _, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(REQUEST)
            await writer.drain()
            return writer

    crowd = await asyncio.gather(*(join() for _ in range(connections)))
    await asyncio.Event().wait()
    return crowd


asyncio.run(main(*map(int, sys.argv[1:])))
