"""``aos attack``: the attacks that must fail, each played against a running network (docs/threat-model.md, "Attacks by number").

``table`` is what a row is; ``rows`` holds one function a row, one module a topic. ``live`` is the network under attack, ``guest``
an operator of ours on its link, ``play`` a job among guests, ``court`` a job in which guests sit beside the network's own
operators, and the games that follow, ``forge`` lies signed with real keys, ``engines`` wrong models, ``liars`` operators that
compute something else and defend it; ``runner`` plays rows and sums up. Honest work is done with the product's own code; what
attacks is written here by hand.
"""
