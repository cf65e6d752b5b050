std = "luajit"
max_line_length = 160 -- a backstop: aim at 100
codes = true
self = false
ignore = { "581" } -- not (x <= y) is how a NaN is caught
exclude_files = { "build*/" }
files["tests/**/*_spec.lua"] = { std = "+busted" }
files["tests/support"] = { std = "+busted" }
files["tools"] = { max_line_length = false } -- templates of generated code
