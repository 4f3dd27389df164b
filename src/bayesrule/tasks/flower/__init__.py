"""Federated clients in other processes and machines, through Flower.

One pair of apps serves a simulation on Ray and a deployment: the ClientApp (`client_app`) does a
client's part of a round, the ServerApp (`server_app`) gives its grid to the round loop of
`bayesrule.tasks.federated.rounds`, which is the same for every engine; there is no strategy of
Flower's beside it. `grid` is the engine that the loop sees, `simulation` and `deployment` are the
two ways to get a grid, `records` is how values travel.

**Where a client's state is.** It travels with the message, and comes back with the reply: Flower
keeps no state over runs, and a SuperNode that is started anew has lost its own, while the server's
sums still hold its dual. The loop keeps all of it, by the number of the client, in its checkpoint.
So any process can do any client's work, a client that comes back has its dual, and a run resumes.
The price is that the server sees a client's dual and optimiser moments, and a longer way for them.
``comm/up`` and ``comm/down`` count what the algorithm itself has to send (a client's own state is
not part of that), as in the local engine.

**Equality.** Replies arrive in any order, and node ids are random: answers are handed on by the
number of the client, and all randomness is drawn from (seed, client, round). On one machine every
engine gives bit-equal parameters.

This package imports nothing heavy, and Flower only inside: it is an extra.
"""
