"""Answers over HTTP, and the page to try them on.

life.py        checks what was asked for, listens, runs one worker or supervises several
supervisor.py  worker processes that share the listening socket, restarted where they end
worker.py      one process's event loop: accepts, watches deadlines, stops gracefully
connection.py  a socket: HTTP/1.1 in, requests to the application, responses out
messages.py    a request, its response, and what a connection asks of the application
app.py         the endpoints: a request to a response, without a socket
models.py      the bundles served, loaded anew where they are replaced on disk
batcher.py     texts of many requests gathered for the engine, each its fair share
wire.py        requests and responses as types, read from JSON and written to it
answers.py     logits to labels and scores
openapi.py     the OpenAPI document of these types, and the page that shows it
limits.py, keys.py, metrics.py, logs.py, tracing.py
"""
