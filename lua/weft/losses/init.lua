-- losses: what the recipes add up. One loss a file.
return {
  ITC = require "weft.losses.itc",
  ITM = require "weft.losses.itm",
  Queue = require "weft.losses.queue",
  Momentum = require "weft.losses.momentum",
}
