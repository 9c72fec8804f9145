"""``aos attack``: the attacks that must fail, each played against a running network (docs/threat-model.md, "Attacks by number").

``table`` is what a row is; ``rows`` holds one function a row, one module a topic. ``live`` is the network under attack, ``guest``
an operator of ours on its link, ``play`` a job among guests, ``forge`` lies signed with real keys, ``engines`` wrong models;
``runner`` plays rows and sums up. Honest work is done with the product's own code; what attacks is written here by hand.
"""
