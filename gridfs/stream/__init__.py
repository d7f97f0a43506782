"""The stream protocol: framed msgpack headers with raw payloads, over sockets that both ends have authenticated.

A frame is two big-endian 32-bit lengths, a msgpack header and a raw payload. After the handshake a client sends requests
`[number, method, arguments]`, and gets for each, in order, a reply `[number, errno, result]`; either may carry a payload.
"""
