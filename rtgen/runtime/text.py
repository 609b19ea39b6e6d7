"""From a prompt to the context vectors that the denoiser attends to."""

from rtgen.engine.manifest import resolve_shape
from rtgen.engine.package import Package
from rtgen.runtime.embeddings import EmbeddingCache, embedding_key
from rtgen.runtime.prompt import Encoded, Tokenizer
from rtgen.runtime.session import Array, Backend, Session


class PromptEncoder:
    """The tokenizer and the text encoder of a package.

    A text encoder of the device stays loaded. One of the host is larger than everything else together and takes its
    time, so it is loaded for a prompt and released at once, and what it makes is kept on the disk.
    """

    def __init__(self, package: Package, backend: Backend, *, remember: bool = True) -> None:
        """``remember``: whether contexts of a host's encoder may come from the disk."""
        self._model = package.manifest.model
        self._backend = backend
        self._tokenizer = Tokenizer.from_file(
            package.file(self._model.tokenizer), example=self._model.example_prompts[0]
        )
        entry = package.manifest.components["text_encoder"]
        self._shape = resolve_shape(next(tensor.shape for tensor in entry.outputs if tensor.name == "context"), {})
        on_host = entry.runs_on == "host"
        self._resident: Session | None = None if on_host else self._open()
        self._cache = EmbeddingCache() if on_host and remember else None

    def tokens(self, prompt: str) -> Encoded:
        """The prompt's tokens. Raises PromptError."""
        return self._tokenizer.encode(prompt, self._model.prompt_tokens)

    def context(self, tokens: Encoded) -> Array:
        """The context vectors, [1, tokens, dim] float32."""
        if self._resident is not None:
            return _run(self._resident, tokens)
        key = embedding_key(self._model.digest, tokens)
        context = self._cache.get(key, self._shape) if self._cache is not None else None
        if context is None:
            session = self._open()
            try:
                context = _run(session, tokens)
            finally:
                session.close()
            if self._cache is not None:
                self._cache.put(key, context)
        return context

    def _open(self) -> Session:
        session = self._backend.open("text_encoder")
        session.allocate({})
        return session


def _run(session: Session, tokens: Encoded) -> Array:
    session.write("ids", tokens.ids)
    session.write("mask", tokens.mask)
    session.run()
    return session.read("context")
