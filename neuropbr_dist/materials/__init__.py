"""Materials and their looks; knows no data set. Plain numpy and torch.

channels      the eight channels of maps, and how bytes hold them; `decoding` in torch
plane         its plane, and the cameras that see it
rectify       views brought into the map's frame
footprint     the rows of a view that a part of the map needs for it
families      built-in procedural materials
cameras       cameras that look at it, drawn on the host
lights        lamps, skies and pictures of surroundings, drawn on the host
dirt          what spoils a picture, drawn on the host
scene         all of these as one row of numbers a view
shading       the light that a lit surface sends to the viewer, on the device
surroundings  the light of skies and of real surroundings, on the device
environment   pictures of real surroundings, read and blurred beforehand
lens          dirt put on pictures, on the device
render        pictures of scenes, on the device
views         the built-in set's stored pictures
relighting    lamps and eyes of the rendering loss, drawn on the host
bench         a material seen from above under one lamp that moves
vectors       vectors in torch
noise         tileable noise and cells that families are made of
names         names of maps in other people's packs
conventions   maps and pictures made by other conventions
"""
