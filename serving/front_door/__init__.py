"""The front door: nginx in front of one Triton or several, with TLS, signed tokens and limits.

limits.py         how much one client, and all of them, may ask for
tokens.py         signed, expiring tokens: who asks;  door.js: checks them inside nginx, and JSON for its depth
certificates.py   a certificate for trying it out
credentials.py    the folder that holds certificate, keys and the token for trying it out
nginx_config.py   all of that and the replicas -> nginx.conf, one pure function
nginx.py          the nginx process: start, reload, stop without a trace
fleet.py          several Tritons behind one door: started, watched, replaced, renewed
"""
