"""Dense training for sparse inference: the trainer behind `weights-tool train`, `upcycle`, `data`, `generate` and `eval`.

Shape suffixes, used in every file of this package (a tensor's name ends in its dimensions):

    B  sequences          L  layers             F  FFN units, shared + N·U
    T  tokens             H  query heads        N  routed experts of a layer
    D  hidden             K  key/value heads    U  units of one expert
    V  vocabulary         E  units of a head    S  share levels
    W  windows of tokens  R  rows of a matrix   G  blocks of 32 in a row

`B`, `T` are the sequences and tokens of one micro-batch on one process unless a docstring says otherwise.
"""
