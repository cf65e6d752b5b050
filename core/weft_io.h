// weft_io.h: the part of weft.h about files, pictures and text. Included by weft.h.
