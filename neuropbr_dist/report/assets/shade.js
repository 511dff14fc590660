"use strict";
// A material on a bench under one lamp and a grey sky: the shading model of the built-in materials
// (GGX, height-correlated Smith, Schlick, Lambert; a split-sum sky), in WebGL.
// A material is {size: [width, height], channels: [8 Uint8Arrays]}: albedo R, G, B in sRGB, roughness,
// metallic, normal X, Y, Z as (n + 1) / 2.

const VERTEX = `
attribute vec2 corner;
void main() { gl_Position = vec4(corner, 0.0, 1.0); }`;

const FRAGMENT = `
precision highp float;
uniform sampler2D colour;   // albedo, roughness
uniform sampler2D shape;    // normal, metallic
uniform vec2 size;
uniform vec3 lamp, ground;
uniform mat4 irradiance;
uniform float cameraHeight, lampRadius, intensity, zenith, horizon, exposure;
const float PI = 3.14159265;

vec3 linear(vec3 c) { return mix(c / 12.92, pow((c + 0.055) / 1.055, vec3(2.4)), step(0.04045, c)); }
vec3 encoded(vec3 c) { return mix(c * 12.92, 1.055 * pow(max(c, 1e-8), vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c)); }

vec3 lampLight(vec3 point, vec3 n, vec3 v, float nv, float alpha, vec3 f0, vec3 diffuse) {
  vec3 l = lamp - point;
  float squared = dot(l, l), distance = sqrt(squared);
  l /= distance;
  float nl = max(dot(n, l), 0.0);
  vec3 h = normalize(l + v);
  float nh = max(dot(n, h), 0.0), vh = max(dot(v, h), 0.0);
  float wide = min(alpha + lampRadius / 2.0 / distance, 1.0), a2 = alpha * alpha;
  float d = nh * nh * (wide * wide - 1.0) + 1.0;
  float distribution = a2 / (PI * d * d);
  float smith = nl * sqrt(nv * nv * (1.0 - a2) + a2) + nv * sqrt(nl * nl * (1.0 - a2) + a2);
  vec3 fresnel = f0 + (1.0 - f0) * pow(1.0 - vh, 5.0);
  vec3 reflected = fresnel * (distribution * 0.5 / max(smith, 1e-6)) + (1.0 - fresnel) * diffuse;
  return reflected * (intensity * nl / squared);
}

vec3 skyLight(vec3 n, vec3 v, float nv, float roughness, vec3 f0, vec3 diffuse) {
  vec3 mirrored = 2.0 * dot(n, v) * n - v;
  float above = clamp(0.5 + mirrored.z / (0.15 + 0.03 + 1.4 * roughness * roughness), 0.0, 1.0);
  float sky = mix(horizon, zenith, clamp(mirrored.z, 0.0, 1.0));
  vec3 seen = mix(ground, vec3(sky), above);
  float smooth1 = 1.0 - roughness;
  float grazing = min(smooth1 * smooth1, exp2(-9.28 * nv)) * smooth1 + 0.0425 - 0.0275 * roughness;
  vec3 response = f0 * (-1.04 * grazing + 1.04 - 0.572 * roughness) + 1.04 * grazing - 0.04 + 0.022 * roughness;
  float received = dot(vec4(n, 1.0), irradiance * vec4(n, 1.0));
  return seen * response + max(received, 0.0) * diffuse * (1.0 - response);
}

void main() {
  vec2 at = vec2(gl_FragCoord.x, size.y - gl_FragCoord.y) / size;
  vec4 c = texture2D(colour, at), s = texture2D(shape, at);
  vec3 albedo = linear(c.rgb), n = normalize(s.rgb * 2.0 - 1.0), point = vec3(at.x - 0.5, 0.5 - at.y, 0.0);
  vec3 v = normalize(vec3(0.0, 0.0, cameraHeight) - point);
  float roughness = max(c.a, 0.045), nv = max(dot(n, v), 1e-3);
  vec3 f0 = mix(vec3(0.04), albedo, s.a), diffuse = albedo * ((1.0 - s.a) / PI);
  vec3 light = skyLight(n, v, nv, roughness, f0, diffuse) + lampLight(point, n, v, nv, roughness * roughness, f0, diffuse);
  gl_FragColor = vec4(encoded(clamp(light * exposure, 0.0, 1.0)), 1.0);
}`;

const LINEAR = Float32Array.from({ length: 256 }, (_, i) => i <= 10 ? i / 255 / 12.92 : ((i / 255 + 0.055) / 1.055) ** 2.4);

/** Light that the material itself sends up to reflections that point below it: [r, g, b]. */
function groundOf(material, bench) {
  return [0, 1, 2].map((i) => {
    const channel = material.channels[i];
    let sum = 0;
    for (let p = 0; p < channel.length; p++) sum += LINEAR[channel[p]];
    return (sum / channel.length) * bench.irradianceFromAbove / Math.PI;
  });
}

/** Whether this browser shades fragments in 32-bit floats. */
function hasWebGL() {
  const gl = document.createElement("canvas").getContext("webgl");
  return gl !== null && gl.getShaderPrecisionFormat(gl.FRAGMENT_SHADER, gl.HIGH_FLOAT).precision >= 23;
}

/** Returns {setMaterial, draw}. */
function makeShader(canvas, bench) {
  const gl = canvas.getContext("webgl", { preserveDrawingBuffer: true, antialias: false });
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 3, -1, -1, 3]), gl.STATIC_DRAW);
  const corner = gl.getAttribLocation(program, "corner");
  gl.enableVertexAttribArray(corner);
  gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0);
  const uniform = (name) => gl.getUniformLocation(program, name);
  for (const name of ["cameraHeight", "lampRadius", "intensity", "zenith", "horizon", "exposure"]) gl.uniform1f(uniform(name), bench[name]);
  gl.uniformMatrix4fv(uniform("irradiance"), false, bench.irradiance);
  const textures = ["colour", "shape"].map((name, unit) => {
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const [key, value] of [["MIN_FILTER", "NEAREST"], ["MAG_FILTER", "NEAREST"], ["WRAP_S", "CLAMP_TO_EDGE"], ["WRAP_T", "CLAMP_TO_EDGE"]])
      gl.texParameteri(gl.TEXTURE_2D, gl["TEXTURE_" + key], gl[value]);
    gl.uniform1i(uniform(name), unit);
    return unit;
  });
  return {
    setMaterial(material) {
      const [width, height] = material.size, c = material.channels;
      [canvas.width, canvas.height] = [width, height];
      gl.viewport(0, 0, width, height);
      gl.uniform2f(uniform("size"), width, height);
      gl.uniform3f(uniform("ground"), ...groundOf(material, bench));
      for (const [unit, from] of [[0, [0, 1, 2, 3]], [1, [5, 6, 7, 4]]]) {
        const bytes = new Uint8Array(4 * width * height);
        from.forEach((channel, i) => { for (let p = 0; p < width * height; p++) bytes[4 * p + i] = c[channel][p]; });
        gl.activeTexture(gl.TEXTURE0 + textures[unit]);
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, width, height, 0, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
      }
    },
    draw(lamp) {
      gl.uniform3f(uniform("lamp"), ...lamp);
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    },
  };
}
