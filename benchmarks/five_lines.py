"""The smallest addon that does a pool's work on one request: swap a header, stream the answer."""


def request(flow):
    flow.request.headers["authorization"] = "Bearer sk-bench-good"


def responseheaders(flow):
    flow.response.stream = True
