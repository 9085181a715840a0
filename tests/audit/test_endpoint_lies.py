"""Endpoints that do not speak HTTP, in ways that the packages which read them do not expect."""

import socket
from threading import Thread

import pytest

from hf_unlearn.audit.endpoint import EndpointEncoder, EndpointOptions
from hf_unlearn.errors import UserError

LIES = {
    "a part of negative length": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nabc\r\n0\r\n\r\n",
    "a redirect to no address": b"HTTP/1.1 302 Found\r\nlocation: http://[::1\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", LIES.values(), ids=LIES)
def test_what_is_no_http_is_told_in_one_sentence(cache, answer):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def lie():
            connection, _ = listening.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)

        thread = Thread(target=lie)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/embeddings"
        asked = EndpointEncoder(url, "before", cache, EndpointOptions(attempts=1, timeout=5))
        with pytest.raises(UserError, match="answered what is no HTTP"):
            asked.embed_texts(["apple"])
        thread.join()
