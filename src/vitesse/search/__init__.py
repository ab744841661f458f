"""Which architecture is most accurate within a latency, on this machine and these pictures?"""

from vitesse.search.result import SearchResult
from vitesse.search.run import search
from vitesse.search.space import SPACES, EfficientViTSpace, SHViTSpace, Space

__all__ = ["SPACES", "EfficientViTSpace", "SHViTSpace", "SearchResult", "Space", "search"]
