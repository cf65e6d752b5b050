"""A causal language model of the LLaMA kind and its fusion with an image stream, after their papers:
RMSNorm, rotary positions, SwiGLU, tied embeddings (Touvron et al. 2023, arXiv 2302.13971); gated
cross-attention in the upper layers (Dou et al. 2022, arXiv 2206.07643)."""
import torch
import torch.nn.functional as F
from torch import nn


def heads_of(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def rotate(x, angles):
    """x [B, H, N, D]: element i turns with element i + D/2."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["width"]
        self.heads = c["heads"]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(d, d, bias=False))

    def forward(self, x, angles, visible, cache):
        q = rotate(heads_of(self.q_proj(x), self.heads), angles)
        k = rotate(heads_of(self.k_proj(x), self.heads), angles)
        v = heads_of(self.v_proj(x), self.heads)
        if cache is not None:
            k, v = cache.grow(k, v)
        causal = visible is None and x.shape[1] > 1
        return self.o_proj(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal)))


class FeedForward(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["width"], c["ff"], bias=False)
        self.up_proj = nn.Linear(c["width"], c["ff"], bias=False)
        self.down_proj = nn.Linear(c["ff"], c["width"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c["width"], c["eps"])
        self.self_attn = SelfAttention(c)
        self.post_attention_layernorm = RMSNorm(c["width"], c["eps"])
        self.mlp = FeedForward(c)


class Stack(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab"], c["width"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = RMSNorm(c["width"], c["eps"])


class LayerCache:
    """Keys and values of what was read, in room taken once."""

    def __init__(self, room):
        self.room, self.length, self.k, self.v = room, 0, None, None

    def grow(self, k, v):
        if self.k is None:
            shape = (k.shape[0], k.shape[1], self.room, k.shape[3])
            self.k, self.v = k.new_empty(shape), k.new_empty(shape)
        end = self.length + k.shape[2]
        self.k[:, :, self.length:end], self.v[:, :, self.length:end] = k, v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


class Language(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.model = Stack(c)

    def angles(self, first, n, like):
        half = self.c["width"] // self.c["heads"] // 2
        rates = self.c["rope_theta"] ** (-torch.arange(half, dtype=torch.float64, device=like.device) / half)
        turn = torch.arange(first, first + n, dtype=torch.float64, device=like.device)[:, None] * rates
        return turn.cos().to(like.dtype), turn.sin().to(like.dtype)

    def forward(self, ids, mask=None, cross=None, caches=None):
        """ids [B, N], mask [B, N] (True: a token) -> final states [B, N, d]. cross(layer from 0, state after
        self-attention, state on entry) may change what the feed-forward sees."""
        n = ids.shape[1]
        visible = None
        if mask is not None:
            causal = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
            visible = causal & mask[:, None, None, :]
        x = self.model.embed_tokens(ids)
        angles = self.angles(caches[0].length if caches else 0, n, x)
        for i, layer in enumerate(self.model.layers):
            h = x + layer.self_attn(layer.input_layernorm(x), angles, visible, caches[i] if caches else None)
            if cross is not None:
                h = cross(i, h, x)
            x = h + layer.mlp(layer.post_attention_layernorm(h))
        return self.model.norm(x)

    def logits(self, states):
        return F.linear(states, self.model.embed_tokens.weight)

    def loss(self, states, ids, mask=None):
        """Each state against the token after it; padding is neither read nor predicted."""
        states, targets = states[:, :-1], ids[:, 1:]
        if mask is None:
            return F.cross_entropy(self.logits(states).flatten(0, 1), targets.flatten())
        real = mask[:, 1:] & mask[:, :-1]
        return F.cross_entropy(self.logits(states[real]), targets[real])

    @torch.no_grad()
    def greedy(self, prompt, new):
        caches = [LayerCache(prompt.shape[1] + new) for _ in self.model.layers]
        ids, out = prompt, [prompt]
        for _ in range(new):
            ids = self.logits(self(ids, caches=caches)[:, -1]).argmax(-1, keepdim=True)
            out.append(ids)
        return torch.cat(out, 1)


class CrossAttention(nn.Module):
    """x + gate * attention of norm(x) over a source."""

    def __init__(self, width, source, heads, norm):
        super().__init__()
        self.heads, self.norm = heads, norm
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(source, width, bias=False)
        self.v_proj = nn.Linear(source, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x, source, mask=None):
        q = heads_of(self.q_proj(self.norm(x)), self.heads)
        k, v = heads_of(self.k_proj(source), self.heads), heads_of(self.v_proj(source), self.heads)
        keys = None if mask is None else mask[:, None, None, :]
        return x + self.gate * self.o_proj(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=keys)))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x):
        q, k, v = (heads_of(p(x), self.heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(joined(F.scaled_dot_product_attention(q, k, v)))


class ImageBlock(nn.Module):
    def __init__(self, width, text, heads, hidden):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.from_text = CrossAttention(width, text, heads, nn.LayerNorm(width, bias=False))
        self.norm2 = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x, text=None, mask=None):
        x = x + self.attention(self.norm1(x))
        if text is not None:
            x = self.from_text(x, text, mask)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Fusion(nn.Module):
    """Looks at the language model; owns only what fusion adds. `count` upper layers are fused."""

    def __init__(self, c, language, width):
        super().__init__()
        self.first = language["layers"] - c["layers"]
        self.text = nn.ModuleList(CrossAttention(language["width"], width, language["heads"],
                                                 RMSNorm(language["width"], language["eps"])) for _ in range(c["layers"]))
        self.image = nn.ModuleList(ImageBlock(width, language["width"], c["heads"], c["ff"]) for _ in range(c["layers"]))

    def fuse(self, language, v, ids, mask):
        """Both sides look at each other's state from before the step."""
        stream = [v]

        def cross(i, after, entry):
            if i < self.first:
                return after
            j = i - self.first
            seen = stream[0]
            stream[0] = self.image[j](seen, entry, mask)
            return self.text[j](after, seen)

        states = language(ids, mask, cross)
        return torch.cat((last_token(states, mask), stream[0].mean(1)), 1)

    def caption(self, language, v, z, ids, mask):
        """The stream on its own (no text gets in), with the memory's vector as one more token."""
        seen = [v]
        for block in self.image[:-1]:
            seen.append(block(seen[-1]))
        if z is not None:
            seen = [torch.cat((s, z[:, None]), 1) for s in seen]

        def cross(i, after, entry):
            return after if i < self.first else self.text[i - self.first](after, seen[i - self.first])

        return language.loss(language(ids, mask, cross), ids, mask)


def last_token(states, mask):
    last = mask.sum(1).clamp(min=1) - 1
    return states[torch.arange(len(states), device=states.device), last]
