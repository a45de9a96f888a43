"""What a request says beside its model and its dialogue, as far as the model's server takes it."""

import re
from collections import OrderedDict

from chatserver.providers import ModelRequest
from chatserver.providers.api import Api

MODELS_LIMIT = 1000
"""How many models are remembered by what they refuse; past it, the one that was asked least lately is forgotten."""

REFUSED = re.compile(
    r"unsupported|not[_ ](currently )?support|n't support|no endpoints found|only the default|not (permitted|allowed)"
    r"|extra[_ ](inputs?|fields?|forbidden)|forbidden_extra|unrecogni[sz]ed|unknown (parameter|argument|field|name)"
    r"|unexpected (keyword|parameter|argument|field|property)|additional propert|not (enabled|available|implemented)"
    r"|disabled|deprecated|requires? --|must be verified|cannot be (used|set)|only (be )?(allowed|set|available)"
    r"|invalid parameter|could not be (verified|decrypted)|not persisted|without its required"
)


class Parameters:
    """Which parameters each model's server takes: what it refused is left out from then on.

    ``omitted`` are left out for all models.
    """

    def __init__(self, api: Api, omitted: frozenset[str]) -> None:
        self._api = api
        self._omitted = omitted
        self._refused: OrderedDict[str, frozenset[str]] = OrderedDict()

    def refused_by(self, model: str) -> frozenset[str]:
        """What is left out of a request to a model."""
        if model not in self._refused:
            return self._omitted
        self._refused.move_to_end(model)
        return self._omitted | self._refused[model]

    def remember(self, model: str, refused: frozenset[str]) -> frozenset[str]:
        """The model has answered a request without these; which of them are new, and left out from now on."""
        new = (refused & self._api.remembered) - self.refused_by(model)
        if new:
            self._refused[model] = self._refused.get(model, frozenset()) | new
            self._refused.move_to_end(model)
            if len(self._refused) > MODELS_LIMIT:
                self._refused.popitem(last=False)
        return new

    def body(self, request: ModelRequest, refused: frozenset[str]) -> bytes:
        """The request's JSON without what is ``refused``."""
        return self._api.body(request, refused)

    def in_words(self, request: ModelRequest, refused: frozenset[str], words: str) -> str | None:
        """The parameter of a request, or the field of its messages, that a refusal in these words is about.

        None: the refusal is about none of them.
        """
        words = words.lower()
        if not REFUSED.search(words):
            return None
        sent = self._api.sent(request, refused)
        return next(
            (name for name, pattern in self._api.omittable.items() if name in sent and pattern.search(words)), None
        )
