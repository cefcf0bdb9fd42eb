"""How a problem becomes tokens, and how predictions are read off them.

Two layouts: a token per pair (x, y), or x and y in tokens of their own that take turns. A tokeniser has `encode`,
`encode_batch`, `shape` and the two read-outs.
"""

from innerloop.tokens.alternating import AlternatingTokens
from innerloop.tokens.concatenated import ConcatenatedTokens
from innerloop.tokens.positions import Placement, Positions, place

Tokens = ConcatenatedTokens | AlternatingTokens
"""Any tokeniser."""

__all__ = ["AlternatingTokens", "ConcatenatedTokens", "Placement", "Positions", "Tokens", "place"]
