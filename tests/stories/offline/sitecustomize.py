"""Put on PYTHONPATH, this makes every network connection of the process an error."""

import socket


def _refuse(*arguments, **keywords):
    raise OSError("the network is blocked")


socket.socket.connect = _refuse
socket.socket.connect_ex = _refuse
socket.getaddrinfo = _refuse
socket.create_connection = _refuse
