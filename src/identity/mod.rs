//! Who this node is to the others: its certificate, the roots that it trusts, and their rotation.
