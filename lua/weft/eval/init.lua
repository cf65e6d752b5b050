-- eval: scores of a run on its held-out pictures. Each takes the run and returns { name = figures }.
return {
  retrieval = require "weft.eval.retrieval".run,
  rerank = require "weft.eval.rerank".run,
  itm = require "weft.eval.itm".run,
  captions = require "weft.eval.captions".run,
}
