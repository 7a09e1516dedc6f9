"""The mitmproxy shell: translates between mitmproxy and the core, decides nothing.

Reading order: `addon` (what mitmproxy calls), `options`, `service` (what all requests
share), `interception` (which connections are ours), then one request: `destination`,
`call`, `stream` (the HTTP layer that replays), `answer` (how far an answer is read),
`wire` (the copy that is sent).
"""
