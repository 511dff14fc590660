"""What a material is and how it looks; knows no data set. Plain numpy and torch.

channels    the eight channels of maps, and how bytes hold them
plane       its plane, and the cameras that see it
rectify     views brought into the map's frame
families    built-in procedural materials
scene       cameras, lamps and skies
shading     the light that a lit surface sends to the viewer
render      a material's views, clean and dirty (`dirt`)
bench       a material seen from above under one lamp that moves
noise       tileable noise and cells that families and dirt are made of
names       names of maps in other people's packs
"""
