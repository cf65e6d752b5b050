"""The stage-1 model in PyTorch, transformers and PEFT, written from the formulas and papers: DINOv2
with LoRA, compressor, language model with fusion, contrastive and matching losses, memory. It takes
a weft checkpoint's tensors by name, and a batch as tensors."""
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from language import Fusion, Language, last_token


def encoder(c):
    return Dinov2Model(Dinov2Config(
        hidden_size=c["width"], num_hidden_layers=c["layers"], num_attention_heads=c["heads"],
        image_size=c["image"], patch_size=c["patch"], layer_norm_eps=1e-6, attn_implementation="sdpa"))


def lora(model, c):
    modern = any(".q_proj." in name for name, _ in model.named_parameters())
    return get_peft_model(model, LoraConfig(
        r=c["rank"], lora_alpha=c["alpha"], lora_dropout=c["dropout"],
        target_modules=["q_proj", "v_proj"] if modern else ["query", "value"]))


class Compressor(nn.Sequential):
    def __init__(self, width, c):
        super().__init__(nn.Linear(width, c["hidden"]), nn.ReLU(), nn.Dropout(c["dropout"]),
                         nn.Linear(c["hidden"], c["width"]), nn.LayerNorm(c["width"]))


def pseudo_inverse(a, steps=15):
    """Newton's iteration from a constant multiple of the transpose (Ben-Israel and Cohen 1966)."""
    with torch.no_grad():
        size = a.abs()
        scale = 1 / (size.sum(-2).amax(-1) * size.sum(-1).amax(-1)).clamp(min=1e-30)
    x = scale[..., None, None] * a.mT
    for _ in range(steps):
        x = 2 * x - x @ a @ x
    return x


class Memory(nn.Module):
    def __init__(self, slots, width):
        super().__init__()
        self.slots = slots
        self.memory_mean = nn.Parameter(torch.eye(slots, width))
        self.logvar_w = nn.Parameter(torch.zeros(slots))

    def episode(self, z, noise):
        address = z @ pseudo_inverse(self.memory_mean)
        memory = pseudo_inverse(address) @ z
        mean = z @ pseudo_inverse(memory)
        drawn = mean + noise * (self.logvar_w / 2).exp()
        kl = (self.logvar_w.exp() + mean.square() - 1 - self.logvar_w).sum(-1) / 2
        return drawn @ memory, kl

    def forward(self, v, noises=None):
        """Consecutive samples share episodes; noises: one [episode, K] each, drawn when not given."""
        codes = v.mean(1).to(self.memory_mean.dtype).split(self.slots)   # its inverses want float32
        noises = noises or [v.new_empty(len(z), self.slots).normal_() for z in codes]
        parts = [self.episode(z, noise) for z, noise in zip(codes, noises)]
        return torch.cat([p[0] for p in parts]).to(v.dtype), torch.cat([p[1] for p in parts]).mean()


class Contrastive(nn.Module):
    def __init__(self, image, text, dim, tau):
        super().__init__()
        self.image_proj, self.text_proj = nn.Linear(image, dim), nn.Linear(text, dim)
        self.tau = nn.Parameter(torch.tensor(tau))

    def forward(self, image, text, batch, queue):
        """Keys are this batch's features, detached, then the queue's. Columns of the same picture are
        positives; other pictures with the same caption are left out."""
        self.tau.data.clamp_(0.001, 0.5)
        image, text = F.normalize(self.image_proj(image), dim=1), F.normalize(self.text_proj(text), dim=1)
        keys = {"image": image.detach(), "text": text.detach(), "ids": batch["image_ids"], "captions": batch["caption_ids"]}
        if queue is not None:
            keys = {name: torch.cat((own, queue[name])) for name, own in keys.items()}
        same = batch["image_ids"][:, None] == keys["ids"]
        left_out = (batch["caption_ids"][:, None] == keys["captions"]) & ~same
        counts = (same | left_out).sum(1) < same.shape[1]
        target = same / same.sum(1, keepdim=True)
        total, similarity = 0, []
        for query, key in ((image, keys["text"]), (text, keys["image"])):
            scores = (query @ key.T / self.tau).masked_fill(left_out, -torch.inf)
            similarity.append(scores.detach())
            total = total - (target * scores.log_softmax(1).masked_fill(left_out, 0)).sum(1)[counts].mean() / 2
        return total, similarity, same | left_out


class Matching(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.head = nn.Linear(width, 2)

    def forward(self, fuse, v, batch, queue, similarity, excluded, given=None):
        """Pairs (v, t), (v, another t), (another v, t); `given`: the drawn columns [2, B]."""
        if given is None:
            weights = [(s.softmax(1) + 1e-4).masked_fill(excluded, 0) for s in similarity]
            given = torch.stack([torch.multinomial(w, 1)[:, 0] for w in weights])
        b = len(v)
        pool = {"tokens": batch["ids"], "mask": batch["mask"], "patches": v}
        if queue is not None:
            pool = {name: torch.cat((own, queue[name].to(own.dtype))) for name, own in pool.items()}
        texts, pictures = given
        logits = self.head(fuse(torch.cat((v, v, pool["patches"][pictures])),
                                torch.cat((batch["ids"], pool["tokens"][texts], batch["ids"])),
                                torch.cat((batch["mask"], pool["mask"][texts], batch["mask"]))))
        return F.cross_entropy(logits, torch.arange(3 * b, device=logits.device).lt(b).long())


class Stage1(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.vision = lora(encoder(c["encoder"]), c["lora"])
        self.compress = Compressor(c["encoder"]["width"], c["compress"])
        self.language = Language(c["language"])
        self.fusion = Fusion(c["fusion"], c["language"], c["compress"]["width"])
        self.memory = Memory(c["memory"]["slots"], c["compress"]["width"])
        self.itc = Contrastive(c["compress"]["width"], c["language"]["width"], c["itc"]["dim"], c["itc"]["tau"])
        self.itm = Matching(c["compress"]["width"] + c["language"]["width"])

    def losses(self, batch, queue=None, given=None):
        given = given or {}
        v = self.compress(self.vision(pixel_values=batch["pixels"]).last_hidden_state[:, 1:])
        text = last_token(self.language(batch["ids"], batch["mask"]), batch["mask"])
        itc, similarity, excluded = self.itc(v.mean(1), text, batch, queue)

        def fuse(stream, ids, mask):
            return self.fusion.fuse(self.language, stream, ids, mask)

        itm = self.itm(fuse, v, batch, queue, similarity, excluded, given.get("columns"))
        z, kl = self.memory(v, given.get("noise"))
        lm = self.fusion.caption(self.language, v, z, batch["ids"], batch["mask"])
        return {"itc": itc, "itm": itm, "lm": lm, "memory": kl}


def total(losses, weights):
    return sum(weights[name] * value for name, value in losses.items())


# Files keep transformers 4's names; 5 has others in memory.
RENAMED = (("attention.attention.query", "attention.q_proj"), ("attention.attention.key", "attention.k_proj"),
           ("attention.attention.value", "attention.v_proj"), ("attention.output.dense", "attention.o_proj"))


def vision_name(name, known):
    """A name of weft's encoder as this one has it, `known` being the names that it has."""
    candidates = [name]
    for old, new in RENAMED:
        if old in name:
            candidates.append(name.replace(old, new))
    for candidate in candidates:
        for full in (candidate, "base_model.model." + candidate):
            if full in known:
                return full
    raise KeyError("the PyTorch side has no parameter for " + name)


def torch_names(model, names):
    """weft name -> name here, for every parameter of a checkpoint."""
    known = {name for name, _ in model.vision.named_parameters()}
    out = {}
    for name in names:
        if name.startswith("vision."):
            out[name] = "vision." + vision_name(name[len("vision."):], known)
        else:
            out[name] = name
    return out


def load(model, tensors):
    """Copies a checkpoint's parameters; every parameter of the model must get one."""
    names = torch_names(model, tensors)
    missing, unexpected = model.load_state_dict({names[k]: v for k, v in tensors.items()}, strict=False)
    if missing or unexpected:
        raise ValueError("missing: %s; unexpected: %s" % (missing, unexpected))
    return names
