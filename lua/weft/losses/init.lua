-- losses: what the recipes add up. One loss a file.
return {
  ITC = require "weft.losses.itc",
  ITM = require "weft.losses.itm",
  Likeness = require "weft.losses.likeness",
  Queue = require "weft.losses.queue",
  Momentum = require "weft.losses.momentum",
}
